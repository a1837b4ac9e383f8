"""Click-fraud scoring as software-defined assets."""

import os

# onnxruntime's wheels send usage data to their maker from the moment of import, unless this is set before it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

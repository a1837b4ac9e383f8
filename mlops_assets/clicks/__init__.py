"""The domain: what a click is, how it is parsed, and the features computed from it. numpy only."""

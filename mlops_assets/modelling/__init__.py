"""The domain of models: candidates, evaluation, promotion, ONNX. No orchestrator."""

"""The overload manager: main watches resources, workers act (Envoy: OverloadManagerImpl)."""

"""The gRPC server: thin services over data, jobs, inference and insight."""

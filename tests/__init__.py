"""All tests: unit, conformance, netns."""

"""The provider's machine: an allocation from its inputs to its signed result, parts, pods, second runs."""

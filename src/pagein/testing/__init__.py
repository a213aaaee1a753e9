"""What tests of pagein and of its extensions need: contract suites, fakes, fault injection."""

"""Help for tests and the demo: real servers on free ports, and kill points."""

"""Project templates, and the synthetic sources that go with them."""

"""What holds for all tests: a property has no deadline, for a busy machine is no defect."""

from hypothesis import settings

settings.register_profile("tiermesh", deadline=None)
settings.load_profile("tiermesh")

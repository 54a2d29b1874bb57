"""What holds for the whole suite."""

from hypothesis import HealthCheck, settings

# No test is about time: on a machine that others use too, a case that took long says nothing about the code.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

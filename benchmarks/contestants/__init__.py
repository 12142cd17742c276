"""Contestants: each module has `answer(request) -> dict` and runs in a process of its own (Worker of
harness.py), where its libraries' thread pools are alone. They import what they compare with, and
nothing of r1grpo but ours.py."""

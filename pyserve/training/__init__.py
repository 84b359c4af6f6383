"""Training: learner, schedules, learning-rate finder, checkpoints, and the recipe that puts them together.

`learner`, `schedules`, `optim` and `lr_finder` need torch alone; `recipe` also reads the job's spec.
"""

"""mtron-parallel alone: one step of a model that no other package made."""

import torch

import mtron_parallel

model = torch.nn.Linear(2, 2)
print(mtron_parallel.AXES, model)

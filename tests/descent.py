"""The optimizer of an update, in plain torch: gradient descent that remembers what it was asked for."""

import torch


class Descent:
    def __init__(self, task, lr):
        self.parameters, self.lr = list(task.parameters()), lr
        self.more, self.factors = [], []

    def zero_grad(self):
        for parameter in self.parameters:
            parameter.grad = None

    def backward(self, loss, more=False):
        self.more.append(more)
        loss.backward()

    def scale_gradients(self, factor):
        for parameter in self.parameters:
            parameter.grad *= factor

    def step(self, factor=1.0, closure=None):
        self.factors.append(factor)
        with torch.no_grad():
            for parameter in self.parameters:
                parameter -= self.lr * factor * parameter.grad

"""The presets of step 9 by name; the first is the default."""

from configs import step09_cifar10, step09_cifar10_slices, step09_mnist, step09_mnist_best, step09_mnist_small

PRESETS = {
    module.CONFIG.preset: module.CONFIG
    for module in (step09_mnist_small, step09_mnist_best, step09_mnist, step09_cifar10)
} | step09_cifar10_slices.CONFIGS

"""A plain training loop with mixed precision, clipping and an averaged copy, made sparse by four lines.

    python examples/plain_loop.py

The lines that sparse_ops adds are marked with `# sparse`. Any model and any torch.optim optimiser will do; with
sparse_ops.optim.SGD or AdamW the penalty, the mask and the threshold cost no pass of their own. The CollapseWarning on
the way tells of hidden units without an input, 39 of 512 here; the accuracy
does not need them.
"""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import sparse_ops  # sparse

EPOCHS = {"pretrain_epochs": 4, "max_regularize_epochs": 8, "finetune_epochs": 6}


def two_spirals(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    label = torch.randint(2, (n,), generator=rng)
    radius = torch.rand(n, generator=rng).sqrt()
    angle = 7 * radius + torch.pi * label
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    return points + 0.01 * torch.randn(n, 2, generator=rng), label


def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    model.eval()
    with torch.inference_mode():
        return (model(x).argmax(1) == y).float().mean().item()


def main() -> float:
    torch.manual_seed(0)
    x, y = two_spirals(4096, seed=1)
    x_test, y_test = two_spirals(1024, seed=2)
    model = nn.Sequential(nn.Linear(2, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-3)
    scaler = torch.amp.GradScaler("cpu")  # float16 gradients need it; bfloat16 does not
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    sparsifier = sparse_ops.methods.ART(model, optimizer, sparsity=0.9, lambda_init=2e-4, **EPOCHS)  # sparse

    while not sparsifier.finished:  # sparse
        model.train()
        correct = 0
        for rows in torch.randperm(len(x)).split(64):
            with torch.autocast("cpu", torch.bfloat16):
                output = model(x[rows])
                loss = nn.functional.cross_entropy(output, y[rows])
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            average.update_parameters(model)
            correct += (output.argmax(1) == y[rows]).sum().item()
        change = sparsifier.end_epoch(lambda m: accuracy(m, x, y), train_accuracy=correct / len(x))  # sparse
        if change is not None:
            print(f"{change}; test accuracy {accuracy(model, x_test, y_test):.3f}")

    sparsifier.apply_masks_(average.module)
    model = sparsifier.finalize()  # sparse
    print(sparse_ops.sparsity_report(model))
    print(f"test accuracy at the end {accuracy(model, x_test, y_test):.3f}")
    return accuracy(model, x_test, y_test)


if __name__ == "__main__":
    main()

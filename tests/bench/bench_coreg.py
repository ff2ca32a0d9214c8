"""Co-Reg's training images/s against the usual way: views made image by image in a data loader, in the same run."""

import time

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from raydapt.artefacts.partial_labels import PartialLabels
from raydapt.artefacts.pixels import PixelRows
from raydapt.data.augment import Augmentation
from raydapt.methods.contract import TrainingImages
from raydapt.methods.coreg.method import CoReg
from raydapt.methods.coreg.settings import CoregSettings
from raydapt.settings.groups import TrainSettings
from raydapt.train.loop import fit
from raydapt.train.place import WorkerContext

IMAGES, CLASSES, SIDE, BATCH, STEPS = 1024, 10, 32, 128, 3
VIEW = Augmentation(
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    padding_px=4,
    mirror=True,
    quarter_turns=False,
    magnitude=5.0,
    cutout_px=16,
)
SETTINGS = CoregSettings(
    student="mini", warmup_epochs=1, start_contrast=0, weak_views=2, strong_views=2, mixup=0.0, queue=2048
)


class NoCheckpoints:
    def load(self):
        return None

    def save(self, data, metrics):
        pass


class Views(Dataset):
    """What the public code's data sets do: two weak and two strong views of one image at a time."""

    def __init__(self, pixel_N3SS):
        self.images = [v2.functional.to_pil_image(pixel) for pixel in pixel_N3SS]
        tail = [v2.PILToTensor()]
        moves = [v2.RandomCrop(SIDE, padding=4), v2.RandomHorizontalFlip()]
        self.weak = v2.Compose(moves + tail)
        self.strong = v2.Compose([*moves, v2.RandAugment(1, 15), *tail, v2.RandomErasing(p=1.0, scale=(0.25, 0.25))])

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = self.images[index]
        return index, self.weak(image), self.weak(image), self.strong(image), self.strong(image)


def images():
    generator = torch.Generator().manual_seed(0)
    candidate_NC = (torch.rand(IMAGES, CLASSES, generator=generator) < 0.2).float()
    candidate_NC[torch.arange(IMAGES), torch.arange(IMAGES) % CLASSES] = 1.0
    none = torch.empty(0, dtype=torch.int64)
    return TrainingImages(
        feature_ND=torch.zeros(IMAGES, 1),
        n_classes=CLASSES,
        labelled_L=none,
        label_L=none,
        unlabelled_U=torch.arange(IMAGES),
        candidate_classes=torch.arange(CLASSES),
        pixels=PixelRows(
            torch.randint(0, 256, (IMAGES, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8),
            torch.arange(IMAGES),
        ),
        partial=PartialLabels.of_block(candidate_NC, candidate_NC.softmax(-1)),
    )


def method_of(data, view):
    return CoReg(SETTINGS, view, data, n_classes=CLASSES, epochs=3, batch_size=BATCH, seed=0)


def batched(data):
    """Images per second of co-training in raydapt's loop."""
    settings = TrainSettings(
        epochs=3, batch_size=BATCH, learning_rate=0.01, precision="bf16", warmup_epochs=0, clip_grad_norm=0
    )
    lines = []
    fit(
        method_of(data, VIEW),
        data,
        settings,
        seed=0,
        place=WorkerContext(device=torch.device("cpu")),
        checkpoints=NoCheckpoints(),
        log=lines.append,
    )
    return max(line["images_per_s"] for line in lines if line["epoch"] > 1)


def per_sample(data, *, bf16):
    """Images per second the usual way: a loader for each student makes its views image by image.

    A step of one student, as in the public code: both guess on the weak views, one learns on the strong ones.
    """
    method = method_of(data, VIEW)
    method.memory.epoch.fill_(2)
    method.memory.clean_2N.fill_(0.9)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
    views_of = Views(data.pixels.pixel_R3SS)
    seen, started = 0, time.perf_counter()
    for i in (0, 1):
        loader = DataLoader(views_of, batch_size=BATCH, shuffle=True, drop_last=True)
        for index_B, *pixels in loader:
            views = [VIEW.plain(pixel) for pixel in pixels]
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                with torch.no_grad():
                    guesses = [[student(view)[0].softmax(-1) for view in views[:2]] for student in method.students]
                guess_2BC = torch.stack([torch.stack(pair).mean(0) for pair in guesses])
                taught = method._student_targets(i, index_B, guess_2BC)
                loss, projected_VD = method._consistency(method.students[i], tuple(views[2:]), taught)
                keys = method._keys(i, views[3], taught)
                loss = loss + 0.1 * method._contrast(i, projected_VD[:BATCH], taught, keys)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen += BATCH
            if seen >= (i + 1) * STEPS * BATCH:
                break
    return seen / 2 / (time.perf_counter() - started)  # an image counts when both students have seen it


def ratios():
    """How many times as fast as a data loader batched views are."""
    torch.set_num_threads(1)
    data = images()
    return {"two students, batched views in bf16": batched(data) / per_sample(data, bf16=False)}


def main() -> None:
    """Prints the table."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    data = images()
    rates = [("loader, fp32", per_sample(data, bf16=False)), ("loader, bf16", per_sample(data, bf16=True))]
    rates.append(("batched on the device, bf16", batched(data)))
    torch.set_num_threads(before)
    print(f"## Co-Reg, two mini students, 2 weak and 2 strong views of {SIDE} px, batch {BATCH}, one thread\n")
    print("| views | images/s | times the loader in fp32 |\n|---|---|---|")
    for name, rate in rates:
        print(f"| {name} | {rate:,.0f} | {rate / rates[0][1]:.1f} |")


if __name__ == "__main__":
    main()

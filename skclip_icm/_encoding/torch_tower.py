"""An image tower computed by torch, on any device."""

from skclip_icm._encoding.torch_state import usual_state


class TorchTower:
    """The image tower of a model in eval mode.

    Parameters
    ----------
    model : torch.nn.Module
        An open_clip model on its device, in its dtype.
    preprocess : open_clip.transform.PreprocessCfg
        Mean and standard deviation of the pixels.
    device : torch.device
        Where the model is.
    dtype : str
        What it computes in.
    layout : torch.memory_format
        Of the pixels.
    """

    def __init__(self, model, preprocess, device, dtype, layout):
        import torch

        self._model, self._device, self._layout = model, device, layout
        self._dtype = getattr(torch, dtype)
        self._mean, self._std = (
            torch.tensor(value, device=device).view(3, 1, 1)
            for value in (preprocess.mean, preprocess.std)
        )
        on_gpu = device.type == "cuda"
        self._copies = torch.cuda.Stream(device) if on_gpu else None
        self._compiled = False

    def encode(self, pixels):
        """Embed pixels, uint8 (b, 3, height, width)."""
        import torch

        n_images = len(pixels)
        if self._compiled and n_images == 1:
            pixels = pixels.expand(2, -1, -1, -1)  # one is a size of its own there
        with usual_state(self._device.type), torch.inference_mode():
            batch = self._to_device(pixels).to(torch.float32)
            # open_clip's arithmetic, in float32 whatever the model computes in.
            batch = batch.div_(255).sub_(self._mean).div_(self._std)
            batch = batch.to(self._dtype, memory_format=self._layout)
            features = self._model.encode_image(batch, normalize=False)
            return features[:n_images].float().cpu().numpy()

    def compile(self, name, example):
        """Compile the tower; `name` is the model's, for the error."""
        import torch
        from torch._dynamo.exc import TorchDynamoException

        # One program for all batch sizes: the last batch is smaller than the others.
        self._model.visual = torch.compile(self._model.visual, dynamic=True)
        self._compiled = True
        try:
            self.encode(example)
        except (TorchDynamoException, ImportError, OSError) as error:
            raise RuntimeError(
                f"compile=True: torch cannot compile {name} here: {error}\nInstall a "
                "C++ compiler (and Triton for a GPU), or set compile=False."
            ) from error

    def _to_device(self, pixels):
        import torch

        if self._copies is None:
            return pixels.to(self._device)
        # Beside what the GPU computes for the batch before.
        with torch.cuda.stream(self._copies):
            batch = pixels.to(self._device, non_blocking=True)
        now = torch.cuda.current_stream(self._device)
        now.wait_stream(self._copies)
        batch.record_stream(now)  # not handed out again before it was used
        return batch


def on_raw_pixels(model, preprocess):
    """Return the image tower as a module that takes pixels as they are.

    Parameters
    ----------
    model : torch.nn.Module
        An open_clip model in float32, on the CPU.
    preprocess : open_clip.transform.PreprocessCfg
        Mean and standard deviation of the pixels.

    Returns
    -------
    tower : torch.nn.Module
        From uint8 (b, height, width, 3) to what the model gives.
    """
    import torch

    class RawPixelTower(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model
            for name in ("mean", "std"):
                value = torch.tensor(getattr(preprocess, name)).view(3, 1, 1)
                self.register_buffer(name, value)

        def forward(self, pixels):
            batch = pixels.permute(0, 3, 1, 2).to(torch.float32).div(255)
            batch = batch.sub(self.mean).div(self.std)
            return self.model.encode_image(batch, normalize=False)

    return RawPixelTower().eval()

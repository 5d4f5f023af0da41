"""Model families: one adapter each around a stock diffusers pipeline, all behind the `Denoiser` contract."""

"""Beat-SSL, reproduced: two-context contrastive learning of ECG encoders with soft targets."""

__version__ = "0.1.0"

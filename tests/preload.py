"""What nearly every worker of `helpers.run_distributed` comes to import: transformers' classes are found when they are first asked for."""

from transformers import AutoTokenizer, PreTrainedTokenizerFast

__all__ = ["AutoTokenizer", "PreTrainedTokenizerFast"]

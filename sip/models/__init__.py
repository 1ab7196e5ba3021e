"""One decoder, configured by data; `decoder.init` and `decoder.apply` are pure functions."""

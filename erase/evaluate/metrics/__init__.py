"""One file a metric: the scorer that looks at pictures, and the figures that its answers make."""

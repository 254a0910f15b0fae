"""Step kinds, one file each: the only place that combines rooms."""

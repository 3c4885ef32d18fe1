"""Detection on a residual network's feature maps: the paper's appendices."""

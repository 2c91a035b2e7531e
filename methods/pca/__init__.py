"""PCA of activation differences: the directions along which the two models differ most."""

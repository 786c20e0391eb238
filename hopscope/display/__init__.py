"""Tables as heatmaps that notebooks and pages show; knows no experiment."""

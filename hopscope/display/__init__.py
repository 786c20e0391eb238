"""Interactive heatmaps of tables, for notebooks and HTML pages."""

"""Questions over several documents: files, orders, layouts and templates."""

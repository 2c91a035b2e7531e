"""What the views and figures of finished runs are made of: stored rows, pages of them, plotly figures."""

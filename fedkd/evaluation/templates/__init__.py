"""The look of the report."""

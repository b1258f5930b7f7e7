"""Pages and charts made from stored records; nothing here runs a model."""

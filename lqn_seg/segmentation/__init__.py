"""Teacher, student and head joined into segmentation."""

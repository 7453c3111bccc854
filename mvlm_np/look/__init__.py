"""What happened between a picture and its answer, as numbers (`looking`, `report`) and as a page (`page`)."""

"""Names and definitions of the metrics that tables, reports and model cards show."""

# In the order in which tables show them.
METRIC_DEFINITIONS = {
    "dice_per_image": "Dice (F1) of each image, then the mean over images",
    "iou_per_image": "intersection over union of each image, then the mean over images",
    "pixel_accuracy": "correctly classified pixels over all pixels",
    "iou_pooled": "intersection over union of all pixels of all images",
    "dice_pooled": "Dice of all pixels of all images",
    "sensitivity": "true positive pixels over foreground pixels, pooled",
    "specificity": "true negative pixels over background pixels, pooled",
    "thresholded_iou": "ISIC 2018: IoU of each image, 0 where under 0.65, then the mean",
    "hd95": "95th percentile of the distances between outlines, in pixels; lower is better",
    "surface_dice": "share of the outlines within 2 pixels of each other",
    "ece": "expected calibration error of the probabilities, 15 bins; lower is better",
}
METRICS = tuple(METRIC_DEFINITIONS)
DEFAULT_METRICS = METRICS[:3]

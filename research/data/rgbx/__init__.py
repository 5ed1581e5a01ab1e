"""RGB with thermal or event channels: arrays with YOLO labels, their augmentation, a demo."""

"""RGB frames with thermal or event channels: arrays with YOLO labels, packing, augmentation."""

"""FCOS with its later improvements, with JOL."""

_base_ = "mmdet::fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py"
custom_imports = dict(imports=["jolkernels.integrations.mmdet"])
model = dict(bbox_head=dict(type="JointFCOSHead", joint=dict(lam=2.0)))

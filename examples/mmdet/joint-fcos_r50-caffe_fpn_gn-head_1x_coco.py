"""FCOS with JOL."""

_base_ = "mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py"
custom_imports = dict(imports=["jolkernels.integrations.mmdet"])
model = dict(bbox_head=dict(type="JointFCOSHead", joint=dict(lam=2.0)))

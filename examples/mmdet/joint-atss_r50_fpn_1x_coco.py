"""ATSS with JOL."""

_base_ = "mmdet::atss/atss_r50_fpn_1x_coco.py"
custom_imports = dict(imports=["jolkernels.integrations.mmdet"])
model = dict(bbox_head=dict(type="JointATSSHead", joint=dict(lam=2.0)))

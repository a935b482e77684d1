"""Faster R-CNN with JOL in its second stage; the RPN keeps its losses."""

_base_ = "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"
custom_imports = dict(imports=["jolkernels.integrations.mmdet"])
model = dict(roi_head=dict(bbox_head=dict(type="JointShared2FCBBoxHead", joint=dict(lam=2.0))))

"""Cascade R-CNN with JOL in its three stages; the RPN keeps its losses."""

_base_ = "mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py"
custom_imports = dict(imports=["jolkernels.integrations.mmdet"])
model = dict(
    roi_head=dict(
        bbox_head=[  # a list replaces the official one, so it is made of that one
            dict(head, type="JointShared2FCBBoxHead", joint=dict(lam=2.0))
            for head in _base_.model.roi_head.bbox_head
        ]
    )
)

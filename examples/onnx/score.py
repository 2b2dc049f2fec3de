"""Scores images with a graph that cmg export wrote; needs onnxruntime, numpy and opencv, no torch.

    python examples/onnx/score.py model.onnx "a photo of a brass gear" part.png
"""

import json
import sys

import cv2
import numpy as np
import onnxruntime

graph, caption, *files = sys.argv[1:]
session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
known = session.get_modelmeta().custom_metadata_map
number = np.array(json.loads(known["captions"]).index(caption))
for file in files:
    image = cv2.cvtColor(cv2.imread(file), cv2.COLOR_BGR2RGB)  # of the size json.loads(known["size"])
    score, threshold, anomaly_map = session.run(None, {"image": image, "caption": number})
    print(file, f"{score:.6g}", "anomalous" if score > threshold else "good", anomaly_map.shape)

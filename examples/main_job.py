"""The main job in Python: from training to engines and a report."""

import optimizer

result = optimizer.run(
    {
        "title": "ResNet-18 on handwritten digits",
        "train": {"arch": "resnet18", "data": "digits:train", "epochs": 3},
        "calibrate": {"calib": "digits:train", "calib_images": 64},
        "build": {"engine": "openvino,onnxruntime", "precision": "fp32,int8"},
        "validate": {"data": "digits:test", "max_drop": "5pp"},
        "bench": {"batch": "1", "duration": "1s"},
    },
    "runs/example",
)
print(result.verdict)
for finding in result.findings:
    print("-", finding)

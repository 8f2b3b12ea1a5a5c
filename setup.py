"""Packaging. mmcv, mmengine and mmdet are no hard requirements, as in OpenMMLab itself: see requirements/."""

from setuptools import find_packages, setup

setup(
    name='adn_mmdet',
    version='0.1.0',
    description='Adaptive Depth Networks with skippable sub-paths, for MMDetection',
    license='Apache-2.0',
    packages=find_packages(include=['adn_mmdet', 'adn_mmdet.*']),
    package_data={'adn_mmdet': ['results/*.json', 'results/page.html', 'web/page.css']},
    python_requires='>=3.10,<3.13',
    install_requires=[
        'faster-coco-eval>=1.8,<1.9',  # its COCOeval_faster.eval is read, whose layout is nowhere promised
        'filelock',
        'matplotlib',
        'numpy',
        'packaging',
        'pandas',
        'pillow',
        'plotly',
        'psutil',
        'pycocotools',
        'rich',
        'torch',
        'torchvision',
    ],
    extras_require={
        'tests': ['pytest'],
        'weights': ['gdown'],
        'onnx': ['onnx'],
        'energy': ['zeus'],
        'cls': ['mmpretrain==1.2.0'],
        'supervision': ['supervision'],
        'sahi': ['sahi'],
        'tensorboard': ['tensorboard'],
        'wandb': ['wandb'],
        'mlflow': ['mlflow'],
        'cam': [
            'scikit-learn',
            'tqdm',
        ],  # what grad-cam needs; it is installed without its own list: docs/classification.md
        'web': ['gradio>=6.31,<7'],
        'dev': [
            'fire',  # of sahi, which is installed without its own list, as grad-cam is
            'gdown',
            'gradio>=6.31,<7',
            'mmpretrain==1.2.0',
            'mypy',
            'onnx',
            'onnxruntime',
            'playwright',  # with the system's Chromium: nothing is downloaded
            'pytest',
            'pytest-xdist',
            'ruff',
            'scikit-learn',
            'supervision',
            'tensorboard',
            'tqdm',
        ],
    },
)

"""Descriptions of the datasets: contents, layout, terms and source."""

MVTEC_AD = """\
MVTec AD: the MVTec anomaly detection dataset
=============================================

5354 images of 15 objects and textures from industrial inspection: 3629 normal training images, and
1725 normal and defective test images with 73 types of defect and masks.

Layout
------
    root/<category>/train/good/<image>.png
    root/<category>/test/<good or defect type>/<image>.png
    root/<category>/ground_truth/<defect type>/<image>_mask.png

Terms
-----
Creative Commons Attribution-NonCommercial-ShareAlike 4.0 (CC BY-NC-SA 4.0): no commercial use.

Source
------
Download it from https://www.mvtec.com/company/research/datasets/mvtec-ad

P. Bergmann, K. Batzner, M. Fauser, D. Sattlegger and C. Steger, "The MVTec Anomaly Detection
Dataset", International Journal of Computer Vision 129, 2021, doi:10.1007/s11263-020-01400-4.
"""

VISA = """\
VisA: the visual anomaly dataset
================================

10,821 images of 12 objects, 1,200 of them anomalous, with masks: printed circuit boards, multiple
instances in one view, and single objects.

Layout
------
    root/split_csv/1cls.csv                      columns object, split, label, image, mask
    root/<category>/image_anno.csv               columns image, label, mask
    root/<category>/Data/Images/Normal/<image>.JPG
    root/<category>/Data/Images/Anomaly/<image>.JPG
    root/<category>/Data/Masks/Anomaly/<image>.png

1cls.csv defines the split into training images, all normal, and test images; image_anno.csv lists
the defects of each image, separated by commas.

Terms
-----
Creative Commons Attribution 4.0 (CC BY 4.0).

Source
------
Download it from https://github.com/amazon-science/spot-diff

Y. Zou, J. Jeong, L. Pemula, D. Zhang and O. Dabeer, "SPot-the-Difference Self-Supervised
Pre-training for Anomaly Detection and Segmentation", ECCV 2022, arXiv:2207.14315.
"""

MPDD = """\
MPDD: the metal parts defect detection dataset
==============================================

More than 1000 images of 6 kinds of metal parts: normal training images, and normal and defective
test images with masks. Position, pose and background of the parts vary.

Layout
------
    root/<category>/train/good/<image>.png
    root/<category>/test/<good or defect type>/<image>.png
    root/<category>/ground_truth/<defect type>/<image>_mask.png

Terms
-----
Its page states no licence. Others list it as CC BY-NC-SA 4.0; ask its authors.

Source
------
Download it from https://github.com/stepanje/MPDD

S. Jezek, M. Jonak, R. Burget, P. Dvorak and M. Skotak, "Deep learning-based defect detection of
metal parts: evaluating current methods in complex conditions", ICUMT 2021,
doi:10.1109/ICUMT54235.2021.9631567.
"""

BTAD = """\
BTAD: the beanTech anomaly detection dataset
============================================

2540 images of 3 industrial products, 290 of them with body or surface defects, with masks.

Layout
------
    root/<01, 02 or 03>/train/ok/<image>
    root/<01, 02 or 03>/test/ok/<image>
    root/<01, 02 or 03>/test/ko/<image>
    root/<01, 02 or 03>/ground_truth/ko/<image>

Images and masks are PNG or BMP files; a mask has the name of its image, but maybe another suffix.

Terms
-----
Creative Commons Attribution-ShareAlike (CC BY-SA), according to the file that comes with it. Others
list it as CC BY-NC-SA 4.0.

Source
------
Download it from http://avires.dimi.uniud.it/papers/btad/btad.zip

P. Mishra, R. Verk, D. Fornasier, C. Piciarelli and G. L. Foresti, "VT-ADL: A Vision Transformer
Network for Image Anomaly Detection and Localization", ISIE 2021, arXiv:2104.10036.
"""

IMAGE_FOLDER = """\
Your own images, in folders
===========================

Layout
------
    root/<good>/<image>
    root/<defect type>/<image>
    root/<masks>/<defect type>/<image>.png       or <image>_mask.png, likewise .bmp, .tif, .tiff
"""

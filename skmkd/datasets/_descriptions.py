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
the defects of each image, separated by commas. The script of its authors makes another layout:

    root/<category>/train/good/<image>.JPG
    root/<category>/test/<good or bad>/<image>.JPG
    root/<category>/ground_truth/bad/<image>.png

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

MVTEC_LOCO = """\
MVTec LOCO AD: the MVTec logical constraints anomaly detection dataset
======================================================================

3644 images of 5 scenes from industrial inspection: 1772 normal training images, 304 normal
validation images, and 1568 normal and anomalous test images. Structural anomalies are dents,
scratches and the like; logical ones break a rule, such as an object that is missing.

Layout
------
    root/<category>/train/good/<image>.png
    root/<category>/validation/good/<image>.png
    root/<category>/test/<good, logical_anomalies or structural_anomalies>/<image>.png
    root/<category>/ground_truth/<defect type>/<image>/<number>.png

Terms
-----
Creative Commons Attribution-NonCommercial-ShareAlike 4.0 (CC BY-NC-SA 4.0): no commercial use.

Source
------
Download it from https://www.mvtec.com/company/research/datasets/mvtec-loco

P. Bergmann, K. Batzner, M. Fauser, D. Sattlegger and C. Steger, "Beyond Dents and Scratches:
Logical Constraints in Unsupervised Anomaly Detection and Localization", International Journal of
Computer Vision 130, 2022, doi:10.1007/s11263-022-01578-9.
"""

MVTEC_AD_2 = """\
MVTec AD 2: advanced scenarios for unsupervised anomaly detection
=================================================================

More than 8000 images of 8 scenes from industrial inspection, among them transparent and overlapping
objects, in several kinds of light: normal training and validation images, and normal and defective
test images. Masks are public for one of the three test sets.

Layout
------
    root/<category>/train/good/<image>.png
    root/<category>/validation/good/<image>.png
    root/<category>/test_public/<good or bad>/<image>.png
    root/<category>/test_public/ground_truth/bad/<image>_mask.png

Terms
-----
Creative Commons Attribution-NonCommercial-ShareAlike 4.0 (CC BY-NC-SA 4.0): no commercial use.

Source
------
Download it from https://www.mvtec.com/company/research/datasets/mvtec-ad-2

L. Heckler-Kram, J.-H. Neudeck, U. Scheler, R. König and C. Steger, "The MVTec AD 2 Dataset:
Advanced Scenarios for Unsupervised Anomaly Detection", 2025, arXiv:2503.21622.
"""

MVTEC_3D_AD = """\
MVTec 3D-AD: the MVTec 3D anomaly detection dataset
===================================================

4147 scans of 10 objects, each a colour image and the positions of its pixels: 2656 normal training
scans, 294 normal validation scans, and 1197 normal and defective test scans with masks. Only the
colour images are loaded.

Layout
------
    root/<category>/<train or validation>/good/rgb/<image>.png
    root/<category>/test/<good or defect type>/rgb/<image>.png
    root/<category>/test/<defect type>/gt/<image>.png

Terms
-----
Creative Commons Attribution-NonCommercial-ShareAlike 4.0 (CC BY-NC-SA 4.0): no commercial use.

Source
------
Download it from https://www.mvtec.com/company/research/datasets/mvtec-3d-ad

P. Bergmann, X. Jin, D. Sattlegger and C. Steger, "The MVTec 3D-AD Dataset for Unsupervised 3D
Anomaly Detection and Localization", VISAPP 2022, arXiv:2112.09045.
"""

KOLEKTOR_SDD = """\
KolektorSDD: the Kolektor surface-defect dataset
================================================

399 images of 50 electrical commutators, 52 of them with a crack, with masks.

Layout
------
    root/<item>/<image>.jpg
    root/<item>/<image>_label.bmp

Terms
-----
Creative Commons Attribution-NonCommercial-ShareAlike 4.0 (CC BY-NC-SA 4.0): no commercial use.

Source
------
Download it from https://www.vicos.si/resources/kolektorsdd/

D. Tabernik, S. Šela, J. Skvarč and D. Skočaj, "Segmentation-Based Deep-Learning Approach for
Surface-Defect Detection", Journal of Intelligent Manufacturing 31, 2020, arXiv:1903.08536.
"""

KOLEKTOR_SDD2 = """\
KolektorSDD2: the Kolektor surface-defect dataset 2
===================================================

3335 images of surfaces, 356 of them with a scratch, a spot or another defect, with masks: 2331
training images, 246 of them with defects, and 1004 test images, 110 of them with defects.

Layout
------
    root/<train or test>/<image>.png
    root/<train or test>/<image>_GT.png

Terms
-----
Creative Commons Attribution-NonCommercial-ShareAlike 4.0 (CC BY-NC-SA 4.0): no commercial use.

Source
------
Download it from https://www.vicos.si/resources/kolektorsdd2/

J. Božič, D. Tabernik and D. Skočaj, "Mixed supervision for surface-defect detection: From weakly to
fully supervised learning", Computers in Industry 129, 2021, arXiv:2104.06064.
"""

IMAGE_FOLDER = """\
Your own images, in folders
===========================

Layout
------
    root/<good>/<image>                          good, ok or normal
    root/<defect type>/<image>
    root/<masks>/<defect type>/<image>.png       or <image>_mask.png, likewise .bmp, .tif, .tiff

Images may lie in subfolders of these, and their masks in the same subfolders.
"""

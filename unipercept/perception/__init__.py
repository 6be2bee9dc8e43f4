"""Training and evaluation of classifiers on recordings of any modality (outer ring): `train`, `evaluate`, `search`, `explain`.

summary = train_run("clips/", "runs/birds")          # a folder of class folders, or the name of a published set
unipercept.perceive("new.wav", model="runs/birds")
"""

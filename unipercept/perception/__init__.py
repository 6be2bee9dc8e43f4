"""Training and evaluation of classifiers on recordings of any modality (outer ring): `train`,
`evaluate`, `search`, `explain`.

summary = train_run("clips/", "runs/birds")          # a folder of class folders, or the name of a published set
unipercept.perceive("new.wav", model="runs/birds")

A run, `unipercept train`:
    run             from a folder or a set to a run's folder; command parses `--set`
    settings        maps and recipe, frozen; splits draws the parts
    packs           recordings decoded once, and batches of them as maps
    task            training batches and evaluation on the device; augment varies them
    networks        the network: built, loaded, fitted by its head or a linear probe
    scores          accuracy, confusion, calibration; report is their HTML page

Use and evaluation of a model:
    evaluate        scores on a set
    explain         where the evidence for a label lies
    search          nearest neighbours in an archive of embeddings
    probe           embeddings compared with baselines; series_statistics is one of these

The universal model, `unipercept universal`:
    universal       joint training of all tasks; universal_data has the tasks and their data, universal_network the
                    network, universal_file the file
    joint_step      a step of the joint training, gradients and update, as CUDA graphs
    series_traits   what embeddings of series are trained to predict
    measure_familiarity     the out-of-distribution statistics of its heads
"""

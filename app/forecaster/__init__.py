"""The weather application: a PuYun-style cascade that anyone can train, run and score (outer ring).

    analyses ─frames─▶ states ─cascade: model, network─▶ states ─writer─▶ Zarr store
    Zarr store ─evaluate─▶ scores ─score_pictures─▶ curves

The verbs are in unipercept/cli_weather.py and cli_weather_network.py.

Data:
    fields          weather files and stores under short names and canonical units; frames reads states by time
    generate        generated weather, by the equations in dynamics
    climatology, humidity

The network:
    network         the architecture; boundary pads it beyond the poles, clock gives it season and sun
    model           the network with normalisation and grid, as one file; resolution extends it to a finer grid
    onnx_stage      released models as ONNX graphs

Training:
    recipe          phases of both stages; training runs them; schedules lengthens rollouts
    windows         samples; rollout_loss the loss
    sharding        one map spread over processes

Forecasts:
    forecast        from analyses to a store; ensemble perturbs members
    cascade         stages in turn; cascade_file is its folder on disk; writer the store, cf its attributes

Verification:
    evaluate        stored forecasts against the truth; scores collects, score_formulas defines
    pictures        maps and animations, drawn with projection; score_pictures curves and scorecards
"""

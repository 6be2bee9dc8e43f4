"""The web demo: one page over `unipercept.api`. No model code lives here; gradio is imported by this package alone.

    browser ─▶ guard ─▶ server ─▶ blocks (gradio) ─▶ a tab ─▶ jobs ─▶ workers ─▶ worker: runs the work in a process

Tabs, in up to three modules each: NAME_tab has the widgets and endpoints; NAME_work computes and NAME_drawing
draws, both in a worker process.
    perceive, compare, series, weather, train, models
    page            puts the tabs together; parts, picking and slider are widgets that they share; theme,
                    words (HTML) and charts the look
    showing         a recording in its natural form; weather_maps the maps of a forecast
    examples        recordings to try each tab with

The server:
    options         what `unipercept app` takes; context hands everything to the tabs
    sessions        whose file is whose; files unpacks archives; guard and blocks enforce both
    jobs, job       a job as the server and as the work see it; workers and worker are both ends of the pipe
    metrics         counters for /metrics and /health
    gradio_import   imports gradio in half the time, and refuses one that the demo does not fit
"""

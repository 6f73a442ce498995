"""The Gradio app: adapting to a visitor's problem, live."""

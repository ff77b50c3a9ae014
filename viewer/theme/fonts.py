"""Font stacks of the page, the components and their canvases."""

FONT = (
    '-apple-system,BlinkMacSystemFont,"Segoe UI Variable Text","Segoe UI",Inter,Roboto,"Helvetica Neue","Noto Sans",'
    '"Liberation Sans",Arial,sans-serif'
)
MONO = 'ui-monospace,"SF Mono","Cascadia Code",Menlo,Consolas,"Liberation Mono","DejaVu Sans Mono",monospace'
